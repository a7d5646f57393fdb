"""A real ComfyUI for the commands: its set-up, a server, a client, videos, and the checks that run in it."""
