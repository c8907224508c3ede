"""The page itself: its parts, and what follows which of a visitor's doings."""

import gradio as gr
from gradio.exceptions import InvalidPathError

from svdp_jax.faces import scene as scenes
from svdp_jax.page import knobs
from svdp_jax.page.studio import Studio

PATHS = ("source", "landmarks")  # parts that are taken by their files' paths
CAMERA = 0.04  # seconds between frames of a camera
ANEW = "the page's server was started anew since, and has none of your files; reload the page and give them again."
CSS = """
.pictures {display: flex; gap: 4px; flex-wrap: wrap} .pictures img {height: 104px; width: auto}
.made img {max-height: 320px; width: auto} progress {width: 100%} .wrong {font-weight: bold}
"""
# Fonts from nowhere else; shades in which words can be read.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]).set(
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_hover_dark="*primary_800",
    body_text_color_subdued="*neutral_600",
)


class Blocks(gr.Blocks):
    async def preprocess_data(self, function, inputs, state, *arguments, **named):
        # Gradio would open a picture with Pillow, fail in its own words, and copy the file with every call. It makes a
        # session's parts anew when their values change, so that this is said to the part there is now.
        for part in function.inputs:
            if part.elem_id in PATHS:
                (state[part._id] if state else part).preprocess = lambda payload: payload and payload.path
        try:
            return await super().preprocess_data(function, inputs, state, *arguments, **named)
        except InvalidPathError:  # where uploads were: the check that nobody names other files of the server
            raise gr.Error(ANEW, print_exception=False) from None


def page(studio: Studio) -> gr.Blocks:
    said = "A picture, and a video of somebody else: the pictured person does what the other does."
    said += " Without a video, eyes and lips can be opened under Settings." if studio.animator.engine.still else ""
    with Blocks(title="svdp_jax", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Animate a portrait\n{said}")
        with gr.Row():
            with gr.Column():
                form, settings, buttons, examples = inputs(studio)
            with gr.Column():
                preview = gr.HTML(elem_id="preview")
                newest, progress = gr.HTML(elem_id="newest"), gr.HTML(elem_id="progress")
                result = gr.Video(label="Result", interactive=False, height=320, elem_id="result")
                comparison = gr.Video(label="Side by side", interactive=False, height=200, elem_id="comparison")
        start, cancel = buttons
        shown = [newest, progress, result, comparison]
        with gr.Accordion("Live: you are the driver", open=False):
            camera = gr.Image(
                label="Your camera", sources=["webcam"], streaming=True, type="numpy", height=200, elem_id="camera",
                webcam_options=gr.WebcamOptions(mirror=False),
            )  # fmt: skip
            made, rate = gr.HTML(elem_id="live"), gr.HTML(elem_id="rate")
        camera.stream(
            studio.live, [camera, form[0]], [made, rate], stream_every=CAMERA, time_limit=None, show_progress="hidden",
            concurrency_limit=4, api_visibility="private",
        )  # fmt: skip
        run = start.click(studio.animate, form + settings, shown, show_progress_on=[progress], api_name="animate")
        # Only what visitors do themselves is heard: values that change as a consequence would be answered a second
        # time, half of them old.
        source, driving, *choices, landmarks = form
        done = [source.input, driving.input, *(choice.input for choice in choices), landmarks.upload, landmarks.clear]
        quietly = dict(queue=False, show_progress="hidden", api_visibility="private", trigger_mode="multiple")
        for change in (
            gr.on(done, studio.change, form, form + shown, **quietly),
            examples.click(studio.choose, examples, form + shown, **quietly),
        ):
            change.success(
                studio.look, None, preview, concurrency_id="look", concurrency_limit=2, trigger_mode="multiple",
                api_visibility="private",
            )  # fmt: skip
        # Gradio takes a waiting animation out of the queue; it cannot interrupt one that runs.
        stopped = cancel.click(studio.stop, cancels=[run], queue=False, api_visibility="private")
        stopped.then(lambda: "Stopped.", None, progress, queue=False, api_visibility="private")
        blocks.unload(studio.close)
    return blocks.queue(max_size=20)


def inputs(studio: Studio) -> tuple[list, list, tuple, gr.Dataset]:
    """Parts: the form of `Given`, what `Studio.animate` takes more, the two buttons, and the examples."""
    source = gr.Image(label="Picture", type="filepath", sources=["upload", "webcam"], height=260, elem_id="source")
    driving = gr.Video(label="Driving video", sources=["upload", "webcam"], height=260, elem_id="driving")
    with gr.Row():
        start, cancel = gr.Button("Animate", variant="primary"), gr.Button("Cancel")
    with gr.Accordion("Faces and cropping", open=False):
        face = gr.Number(0, label="Which face of the picture, 0 being the largest", precision=0, minimum=0, elem_id="face")
        driving_face = gr.Number(0, label="Which face of the video", precision=0, minimum=0, elem_id="driving_face")
        source_crop = gr.Radio(
            scenes.CROPS, value="auto", label="Crop the picture: around the face, or not at all", elem_id="source_crop"
        )
        driving_crop = gr.Radio(scenes.CROPS, value="auto", label="Crop the video", elem_id="driving_crop")
        landmarks = gr.File(
            label="Landmarks of the driver (.npy or .json), instead of finding the face", type="filepath", elem_id="landmarks"
        )
        paste_back = gr.Checkbox(label="Paste back into the whole picture")
    with gr.Accordion("Settings", open=False):
        turned = [part(knob, studio.animator.engine) for knob in knobs.of(studio.animator.engine.flags)]
        seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31 - 1)
    examples = gr.Dataset(
        components=[source, driving],
        samples=[list(given.files) for given in studio.examples],
        sample_labels=[f"Example {number}" for number in range(1, 1 + len(studio.examples))],
        type="index",
        label="Examples",
    )
    # Each has the name it has in `Given`, by which `Studio.change` knows it.
    form = [source, driving, face, driving_face, source_crop, driving_crop, landmarks]
    return form, [paste_back, *turned, seed], (start, cancel), examples


def part(knob: knobs.Knob, engine) -> gr.components.Component:
    usual = knob.usual(engine)
    if knob.kind == "check":
        return gr.Checkbox(usual, label=knob.label)
    if knob.kind == "radio":
        return gr.Radio(knob.range, value=usual, label=knob.label)
    least, most, step = knob.range
    whole = {"precision": 0} if isinstance(step, int) else {}
    return gr.Slider(least, most, usual, step=step, label=knob.label, elem_id=knob.name, **whole)
