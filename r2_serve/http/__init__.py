"""The OpenAI-compatible endpoint as a plain ASGI application: no Ray, no torch, no model.

edge             outermost: request id, client keys, one log line per request, last-resort error body
api              `create_app`: the routes
chat             POST /v1/chat/completions: body limits, admission, plain and streamed replies
openai_wire      request bodies into `Query`: what is not honoured is refused
refusals         how a refused request is told what was wrong
openai_replies   `Answer` into reply bodies, chunks and headers; errors into four-key bodies
sse              event streams: heartbeats, disconnects, late errors
admission        the bounded queue
keys             client keys: hashed, with models and budgets
spend            what each key has spent
metrics          Prometheus
backend          the protocol of the router behind it, which `r2_serve.router.router` implements
"""
