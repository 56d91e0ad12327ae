"""Side-by-side benchmarks, one file a question: `python -m bench --help`.

1. `__main__` picks a benchmark; its file runs the contenders interleaved (`paired`), on checkpoints that
   `checkpoints` makes, and returns a `result.Result`;
2. the result is printed (`--json`: for a program), and drawn by `picture` into `results/`;
3. `NOTES.md` keeps what was predicted, what was measured, and why.
"""
