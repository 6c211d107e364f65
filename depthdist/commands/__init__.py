"""The command `depthdist`: one word for each thing a person does."""
