"""Trees that join a draft model's levels with the candidates of other drafters."""
