"""The Open Inference Protocol (KServe v2): its servicer, its tensors, and text generation through it."""
