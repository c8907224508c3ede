"""Pictures, videos and sound: reading and writing them, and the credentials in what is written.

What is in the picture is not known here; faces are in `faces`.
"""
