"""Who occupies the machine's memory, and who leaves when there is too little of it."""
