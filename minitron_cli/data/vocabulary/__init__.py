"""Cutting a vocabulary: how often text uses each token, which tokens stay, and the tokenizer that knows only those.

A kept set of tokens is *closed* when every token that the merges pass through on the way to a kept one is kept too.
Then text whose old ids are all kept gets the same tokens from the cut tokenizer. Why:

- BPE. The merges made inside a final token are those that make it alone, whatever stands around it, and a merge is
  never undone. So all merges that such a text needs are among the kept ones; of fewer merges, the lowest-ranked one
  that applies is the same; where none of all applied, none of the kept ones does.
- Unigram. The best segmentation stays possible and no other gets better, as long as the lowest score of the vocabulary,
  which decides the price of the unknown, stays.

What other text needs is always kept: bytes, or single characters where there are no bytes.
"""
