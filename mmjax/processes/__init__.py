"""How mmjax starts processes: their module search path, and the compile cache."""
