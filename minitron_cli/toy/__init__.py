"""The small world of the README's main job: corpus, tokenizer, tasks and the teacher's shape, all made from a seed."""
