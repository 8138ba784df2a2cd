"""From logits to text: sampling, penalties, grammars, detokenizing."""
