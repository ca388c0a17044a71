"""The verb `launch`: `mmjax train` on several local processes, or on Cloud TPUs.

The Python twins are `mmjax.launch.local.local` and `mmjax.launch.tpu.tpu`.
"""
