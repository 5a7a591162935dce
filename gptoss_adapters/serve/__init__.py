"""`gptoss-serve`: OpenAI's Responses and Chat Completions APIs in front of any backend, with the same behaviour on all
of them.

A request's way: `app` (auth, limits, logs) -> `bodies` (its shape) -> `chat` or `responses` (its meaning, by
`gptoss_harmony`'s mappings) -> `scheduler` (a backend, or a place in the queue) -> `answers` (tokens to chunks and
events). Importing this costs nothing; `app.create_app(backends, settings)` makes the ASGI application.
"""
