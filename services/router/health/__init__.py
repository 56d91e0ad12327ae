"""Whether replicas are well, by what their own sessions tell: `replica` for one, `stage` for those side by side."""
