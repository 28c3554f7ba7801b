"""Publishing: a trained adapter into the running application, and back, without a restart or a lost request.

    adapter directory + config file ─▶ plan.py         which application, which virtual models, the file's next texts
                                       config_file.py  a text changed with its comments kept, written atomically
                                       dashboard.py    Serve's REST interface: deploy, and wait until it is so
                                       steps.py        load everywhere, name it, route to it; undo what fails

The config file is the source of truth: what runs is what it says. Nothing here imports Ray.
"""
