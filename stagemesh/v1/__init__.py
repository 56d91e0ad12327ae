"""Generated from `protos/stagemesh/v1` by `make protos`; not edited by hand."""
