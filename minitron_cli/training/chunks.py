"""How many tokens the fused loss takes at a time, where no chunk size is asked for."""

# Bytes for the logits of a chunk, 16 for each token and id; but never fewer tokens than the minimum. On a CPU GEMMs
# lose 7% at 128 tokens, 13% at 64, and more than 256 gain nothing: the logits fall out of the cache. On a GPU a chunk
# reads and writes the float32 dW, 8 V H bytes against 2 c V H operations: below some 700 tokens that is the bound.
CHUNK_BYTES = {"cpu": 128 << 20, "cuda": 512 << 20}
_MIN_CHUNK = {"cpu": 256, "cuda": 1024}


def chunk_size(num_tokens: int, vocab: int, device: str, asked: int | None) -> int:
    """Tokens per chunk on a type of device: as asked, else what the budget allows, cut into chunks of equal size."""
    if asked is not None:
        return min(asked, num_tokens)
    allowed = max(_MIN_CHUNK[device], CHUNK_BYTES[device] // (16 * vocab))
    num_chunks = max(1, -(-num_tokens // allowed))
    return -(-num_tokens // num_chunks)
