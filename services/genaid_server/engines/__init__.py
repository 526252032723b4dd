"""The programs that run inside the engine children; they import the native libraries, the services never do."""
