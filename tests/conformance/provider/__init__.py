"""A scripted provider that speaks chat completions, Responses and Anthropic Messages.

conversation    what a request says and what the model replies, in no dialect
mind            what the model replies: the last message of the user tells it
memory          prompt caches and the number of tries, which last over requests
chat, responses, messages
                one dialect each: it reads a request and writes a reply or its events
server          all three at one address
"""
