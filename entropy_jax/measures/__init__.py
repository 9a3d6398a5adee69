"""What is logged: policy entropy (of tokens, `windows` and `forks`; Shannon and `renyi`), its dynamics (covariance and first-order
change), the `ledger` of where a change came from, the law R = -a e^H + b, diversity, and what training did to the support.

`policy`, `dynamics`, `ledger`, `windows`, `forks` and `renyi` are JAX and run inside a compiled step; `law`, `diversity` and
`support` are numpy and run on the host, on finished curves and counts. Import the module, not its names:
`from entropy_jax.measures import dynamics`.
"""
