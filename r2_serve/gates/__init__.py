"""What a fitted gate stores and how it decides: the same code for replay and for serving.

`features` reads prompts and replies, `table` holds them as arrays, `belief` says how probably the leading
answer is right, `fitted` says when to stop, and `stored` is the file.
"""
