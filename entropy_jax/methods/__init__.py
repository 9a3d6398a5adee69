"""The methods of the field: one room a folder, one family a file, one pure function and one lift line a method.

Rooms of the objective, in the order in which data passes through them: `rewards`, `advantages`, `weights`,
`surrogates`, `regularizers`; beside them `selection`, which chooses the prompts of a batch. No room imports another.

    from entropy_jax.methods import advantages
    advantages.grpo(scale='none')
"""
