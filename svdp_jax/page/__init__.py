"""The page: what a visitor has given, what is shown of it, and the parts it is shown in.

Everything shown is derived from one state a session, `visits.Visit`. Only `layout` knows Gradio's parts.
"""
