"""Programs that ask native GPU libraries, each in a process of its own: such a library may hang or crash."""
