"""One partition of a model: built on the meta device, filled with its own tensors, run on ragged batches."""
