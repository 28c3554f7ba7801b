"""The OpenAI-compatible endpoint as a plain ASGI application: no Ray, no torch, no model.

edge             outermost: request id, client keys, one log line per request, the error body of last resort
api              `create_app`: the routes
chat             POST /v1/chat/completions: body limits, admission, plain and streamed replies
openai_wire      request bodies into `Query`; parameters that are not honoured are refused
refusals         the wording of refused requests
openai_replies   `Answer` into reply bodies, chunks and headers; errors into four-key bodies
sse              event streams: heartbeats, disconnects, late errors
admission        the bounded queue
keys             client keys: hashed, with models and budgets
spend            what each key has spent
metrics          Prometheus
redaction        secrets replaced in errors, traces and logs

The router behind it is a `r2_serve.router.backend.RouterBackend`.
"""
