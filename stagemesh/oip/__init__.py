"""Generated from `protos/inference` by `make protos`; not edited by hand."""
