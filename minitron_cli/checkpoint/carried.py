"""What a model directory has beside its weights and config, and what a model made from it takes along."""

import shutil
from pathlib import Path

CARRIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "*.jinja", "generation_config.json"),
    *("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*"),
)
OF_IMAGES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")


def carry(source: Path, directory: Path, *, text_only: bool = False) -> None:
    """Copy tokenizer, chat template, generation config and licence, and what prepares images unless `text_only`.

    Remote code is the user's to copy.
    """
    patterns = CARRIED if text_only else (*CARRIED, *OF_IMAGES)
    for file in sorted({f for pattern in patterns for f in source.glob(pattern) if f.is_file()}):
        shutil.copyfile(file, directory / file.name)
