package image

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// libraryDirs are searched in order, the multi-arch directories of Debian first.
func libraryDirs() []string {
	dirs, _ := filepath.Glob("/usr/lib/*-linux-gnu") // the pattern is constant and valid
	return append(dirs, "/usr/lib64", "/usr/lib", "/lib64", "/lib")
}

// addLibraries adds the loader and the libraries that a program of this machine needs.
func addLibraries(files map[string]File, program string) error {
	f, err := elf.Open(program)
	if err != nil {
		return fmt.Errorf("read %s: %w", program, err)
	}
	defer f.Close()
	if section := f.Section(".interp"); section != nil {
		content, err := section.Data()
		if err != nil || len(content) == 0 {
			return fmt.Errorf("read loader of %s: %w", program, errors.Join(err, errors.New("empty .interp")))
		}
		loader := string(content[:len(content)-1]) // without the terminating zero
		files[loader] = File{Source: loader, Mode: 0o755}
	}
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("read libraries of %s: %w", program, err)
	}
	for _, name := range needed {
		library, err := findLibrary(name)
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		if _, known := files[library]; known {
			continue
		}
		files[library] = File{Source: library, Mode: 0o755}
		if err := addLibraries(files, library); err != nil {
			return err
		}
	}
	return nil
}

func findLibrary(name string) (string, error) {
	for _, dir := range libraryDirs() {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s: %w", name, os.ErrNotExist)
}
