"""What makes the frames: one engine for each kind of model, from crops of a source and a driver to pictures.

An engine knows no files but its weights, and nothing of faces but how it wants them cropped (`framing`);
looking, writing and pasting back are the animator's. `engine.Engine` says what every one of them has.
"""
