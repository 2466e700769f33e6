"""A WordPiece tokenizer trained on the spot."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, max_length: int) -> PreTrainedTokenizerFast:
    """Train an uncased BERT-style tokenizer; the same texts give the same vocabulary.

    Args:
        texts: The training texts, and only those: a vocabulary that has seen the test split leaks.
        vocab_size: Upper bound of the vocabulary.
        max_length: ``model_max_length``, at which ``truncation=True`` cuts.

    Returns:
        A fast tokenizer with ``[PAD]`` = 0, ``[CLS] text [SEP]`` framing and ``input_ids, attention_mask`` as inputs.
        It reloads in `AutoTokenizer`.
    """
    texts = list(texts)
    special = list(SPECIAL_TOKENS.values())
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # The trainer numbers word-inner characters in the order of a hash map, another one each time, and breaks ties
    # between merges by these numbers. Handed in as fixed tokens they are numbered the same way always.
    alphabet = sorted({character for text in texts for character in tokenizer.normalizer.normalize_str(text)} - {" "})
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*special, *alphabet, *(f"##{character}" for character in alphabet)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer = _plain(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )


def _plain(trained: Tokenizer) -> Tokenizer:
    """The same vocabulary in a tokenizer that treats only the special tokens as such."""
    tokenizer = Tokenizer(models.WordPiece(trained.get_vocab(), unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = trained.normalizer, trained.pre_tokenizer
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
    return tokenizer
