"""The device's side of a session: compute, send, receive, and finish alone when it must."""
