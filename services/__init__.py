"""The four services; installed as `stagemesh.services`."""
