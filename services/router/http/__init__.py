"""OpenAI-compatible HTTP in front of the router's core.

The story of a request:

1. `app.py` routes it; `endpoint.py` asks the core who is calling (id, tenant, deadline) and turns every error
   into OpenAI's error shape (`errors.py`).
2. `body.py` reads at most 8 MiB of it and parses the JSON.
3. `schema.py` checks its fields: what is not supported is refused by name, nothing is silently ignored.
4. `completions.py`, `chat.py` and `embeddings.py` make the core's request (`to_generate.py`) and the answer.
5. `../pump.py` runs the core's generations; the first response gives the headers (`headers.py`), and then
   `sse.py` sends events or `collect.py` puts the whole answer together. A client that goes away ends its
   generations.
"""
