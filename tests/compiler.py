"""The compiler's flags of the tests: level 0 of its optimisation and the plain emitters.

Programs here are compiled once and run for milliseconds, and compiling is most of the suite: half of it with the fusion emitters.
"""

QUICK = '--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false'
EIGHT_DEVICES = '--xla_force_host_platform_device_count=8'
