"""How many bytes of text each token stands for, the denominator of bits per byte.

The index of a token file gives the bytes of whole documents; the vocabulary says how many of them a token stands for.
"""

import numpy as np

from minitron_cli.data.tokens import TokenFile


def text_bytes(file: TokenFile, indices: np.ndarray, seq_len: int, lengths: np.ndarray | None = None) -> np.ndarray:
    """Bytes of text of every token of the windows `indices` (n,) of `seq_len` tokens: (n, seq_len) float64.

    The tokens of a document always add up to its bytes. `lengths` (vocab,) of `token_byte_lengths` shares them out
    exactly; without it, or where the tokenizer's normaliser changed a document's text, each token gets an equal share.
    """
    documents, places = np.unique(file.document_numbers(indices, seq_len), return_inverse=True)
    starts, stops = file.document_spans(documents)
    byte_ends = file.documents["byte_end"]
    sizes = byte_ends[documents].astype(np.int64) - np.where(documents, byte_ends[np.maximum(documents - 1, 0)], 0)
    shares = (sizes / (stops - starts))[places].reshape(len(indices), seq_len)
    if lengths is None:
        return shares
    found = lengths[file.windows(np.asarray(indices), seq_len)].astype(np.float64)
    positions = np.asarray(indices, np.int64)[:, None] * seq_len + np.arange(seq_len)
    numbers = places.reshape(len(indices), seq_len)
    for number, (start, stop, size) in enumerate(zip(starts, stops, sizes)):
        spelled = lengths[file.tokens[start:stop]]
        surplus = int(spelled.sum()) - size
        if surplus == 1:
            # SentencePiece vocabularies put one space in front of a document that its text does not have.
            found[positions == start + int(np.argmax(spelled > 0))] -= 1
        elif surplus:
            mine = numbers == number
            found[mine] = shares[mine]
    return found
