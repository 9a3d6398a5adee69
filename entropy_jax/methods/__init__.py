"""The methods of the field: one room a folder, one family a file, one pure function and one lift line a method.

Rooms of the objective, in the order in which data passes through them: `rewards`, `advantages`, `weights`,
`surrogates`, `regularizers`. Beside them, around generation: `samplers` (the logits of a token before it is drawn), `branching` (responses
continued or corrected), `selection` (which prompts and responses make a batch). No room imports another.

    from entropy_jax.methods import advantages
    advantages.grpo(scale='none')
"""
