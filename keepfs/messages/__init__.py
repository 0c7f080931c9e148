"""Messages: every failure that a user can see, with a stable id, a text, a cause and a cure.

The modules `of_...` are the registry; a message is called to make its text. Texts end with
the id in brackets, which `keepfs explain` and docs/troubleshooting.md explain. Standard
library only; imports nothing else of keepfs.
"""
