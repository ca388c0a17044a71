"""How processes of mmjax start: where they look for modules, allocator, compiled programs."""
