"""A decoder whose first line is no first line."""

if __name__ == "__main__":
    print("xxx", flush=True)
