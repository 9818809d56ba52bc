"""Models of text and images: what stands beside their text model, whose table is that of its own family."""

from minitron_cli.spec.wrapper import Wrapper, wrapper

WRAPPERS: tuple[Wrapper, ...] = (
    wrapper(
        "gemma3",
        "vision_tower multi_modal_projector",
        """
        multi_modal_projector.mm_input_projection_weight   * hidden
        """,
    ),
)
