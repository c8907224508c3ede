"""Faces in pictures and clips: found, followed, outlined, cropped, masked, and pasted back.

What an animation is made from is a `scene.Scene`. No network of ours is needed for any of it.
"""
