"""The OpenAI-compatible endpoint as a plain ASGI application: no Ray, no torch, no model.

edge             outermost: request id, client keys, one log line per request, the error body of last resort
api              `create_app`: the routes
endpoint         a conversation in any dialect: body limits, admission, plain and streamed replies
responses        what clients do with a response later; `response_store` keeps responses
background       responses that are made while the client is away
counting         the tokens of a Messages request, counted before it is sent
openai_wire      the core's request, checked: chat completions into `Query`; what is not honoured is refused
refusals         the wording of refused requests
openai_replies   the field `r2`, headers and model lists; which error a client gets
sse              event streams: heartbeats, disconnects, late errors
admission        the bounded queue
keys             client keys: hashed, with models and budgets
spend            what each key has spent
metrics          Prometheus
redaction        secrets replaced in errors, traces and logs

`r2_serve.dialects` translates requests and replies.
The router behind it is a `r2_serve.router.backend.RouterBackend`.
"""
