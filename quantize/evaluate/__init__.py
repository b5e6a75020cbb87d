"""How good a converted model or a draft is."""
