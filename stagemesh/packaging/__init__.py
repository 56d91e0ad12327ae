"""Packages: an `nn.Module` as pieces that any node can run without its Python code.

1. `package.py` settles names and the batch, and exports the module with `torch.export` (`export.py`).
2. `costs.py` counts what each operation costs; `cuts.py` chooses where to cut, or follows the named points.
3. `pieces.py` makes each piece's graph: what it takes, what it gives, which weights it needs.
4. `write.py` writes `manifest.json`, a JSON graph and a safetensors file for each piece (`graph_form.py`,
   `arguments.py`).
5. `load.py` reads a piece back, through the allow list of `operators.py`, into a `program.py`; `prove.py` runs all
   pieces so and compares them with the module before the folder gets its name.

`manifest.py`, `graph_form.py`, `fields.py` and `cuts.py` import neither torch nor numpy: the registry reads packages.
"""
