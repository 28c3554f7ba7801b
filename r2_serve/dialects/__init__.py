"""The dialects of the endpoint and of providers: each turns its own wire into the core's shape and back.

The core speaks chat completions: a `Message` is a chat message, `Sampling.forwarded` holds chat parameters,
and `Answer.body` and `Delta.body` hold a chat completion and its chunks. So a dialect is a pure translation
of JSON, with no network and no router in it.

shapes      JSON whose shape is not checked yet
wire        what the endpoint asks of a dialect: `Dialect`, `Request`, `Reply`
sealing     thoughts of chat models in the opaque fields of the other dialects
chat        chat completions, the dialect of the core itself
messages    Anthropic's Messages
responses   OpenAI's Responses

What a dialect cannot say is refused by name, and never dropped in silence.
"""
