"""What is logged: policy entropy, its dynamics (covariance and first-order change), the law R = -a e^H + b, and diversity.

`policy` and `dynamics` are JAX and run inside a compiled step; `law` and `diversity` are numpy and run on the host, on finished curves
and counts. Import the module, not its names: `from entropy_jax.measures import dynamics`.
"""
