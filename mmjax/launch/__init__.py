"""The verb `launch`: `mmjax train` in several processes of this machine, or on machines elsewhere.

`local` starts processes and starts them again; it runs on every host of the other targets. `job`
says what to run, a module a target fills in its templates (`filling`), and `running` runs them.
"""
