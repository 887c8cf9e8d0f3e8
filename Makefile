# Flatiron - what people type. The build itself is in CMakeLists.txt.
BUILD ?= build
help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16
build: ## the program, build/flatiron
	@cmake -S . -B $(BUILD) -G Ninja >/dev/null && cmake --build $(BUILD)
.PHONY: help build
