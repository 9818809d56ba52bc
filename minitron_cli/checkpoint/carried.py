"""What a model directory has beside its weights and config, and what a model made from it takes along."""

import shutil
from pathlib import Path

CARRIED = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "*.jinja", "generation_config.json", "preprocessor_config.json", "processor_config.json"),
    *("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*"),
)


def carry(source: Path, directory: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence; remote code is the user's to copy."""
    for file in sorted({f for pattern in CARRIED for f in source.glob(pattern) if f.is_file()}):
        shutil.copyfile(file, directory / file.name)
