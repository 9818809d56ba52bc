"""Models of text and images: what stands beside their text model, whose table is that of its own family."""

from minitron_cli.families.experts import EXPERTS
from minitron_cli.spec.axes import parse_table
from minitron_cli.spec.wrapper import SIDE_BY_SIDE, SINCE_5, TEXT_MODEL, Wrapper, wrapper

_QWEN_MERGER = """
    visual.merger.linear_fc2.weight                    hidden *
    visual.merger.linear_fc2.bias                      hidden
"""

# As wide inside as the text model: its neurons are cut with the hidden channels, but are not they.
_TWO_LAYERS = """
    multi_modal_projector.linear_1.weight              projector *
    multi_modal_projector.linear_1.bias                projector ?
    multi_modal_projector.linear_2.weight              hidden projector
    multi_modal_projector.linear_2.bias                hidden ?
"""

WRAPPERS: tuple[Wrapper, ...] = (
    wrapper(
        "gemma3",
        "vision_tower multi_modal_projector",
        """
        multi_modal_projector.mm_input_projection_weight   * hidden
        """,
    ),
    wrapper(
        "gemma4",
        "vision_tower embed_vision audio_tower embed_audio",
        """
        embed_vision.embedding_projection.weight           hidden * ?
        embed_audio.embedding_projection.weight            hidden * ?
        """,
        prefixes=(SINCE_5,),
    ),
    *(
        wrapper(model_type, "vision_tower multi_modal_projector", _TWO_LAYERS)
        for model_type in ("mistral3", "internvl", "llava")
    ),
    *(
        wrapper(
            model_type,
            "vision_model connector",
            """
            connector.modality_projection.proj.weight          hidden *
            """,
            prefixes=(TEXT_MODEL,),
        )
        for model_type in ("idefics3", "smolvlm")
    ),
    wrapper(
        "lfm2_vl",
        "vision_tower multi_modal_projector",
        """
        multi_modal_projector.linear_2.weight              hidden *
        multi_modal_projector.linear_2.bias                hidden ?
        """,
        prefixes=(SINCE_5,),
    ),
    *(
        wrapper(
            model_type,
            "visual",
            _QWEN_MERGER,
            follows={"vision_config.out_hidden_size": "hidden"},
            prefixes=(SINCE_5,),
        )
        for model_type in ("qwen3_5", "qwen3_5_moe")
    ),
    *(
        wrapper(
            model_type,
            "visual",
            """
            visual.merger.mlp.2.weight                     hidden *
            visual.merger.mlp.2.bias                       hidden
            """,
            follows={f"vision_config.{out}": "hidden"},
            prefixes=(SINCE_5, SIDE_BY_SIDE),
            text_types={f"{model_type}_text": "qwen2"},
            derived=("head_dim",),
        )
        for model_type, out in (("qwen2_vl", "hidden_size"), ("qwen2_5_vl", "out_hidden_size"))
    ),
    *(
        wrapper(
            f"qwen3_vl{experts}",
            "visual",
            _QWEN_MERGER
            + """
            visual.deepstack_merger_list.{}.linear_fc2.weight  hidden * ?
            visual.deepstack_merger_list.{}.linear_fc2.bias    hidden ?
            """,
            follows={"vision_config.out_hidden_size": "hidden"},
            prefixes=(SINCE_5,),
            text_types={f"qwen3_vl{experts}_text": f"qwen3{experts}"},
            early="vision_config.deepstack_visual_indexes",
            text_values={"norm_topk_prob": True} if experts else {},
            transposed=tuple(line.name for line in parse_table(EXPERTS) if line.layout == "fused" and experts),
        )
        for experts in ("", "_moe")
    ),
)
