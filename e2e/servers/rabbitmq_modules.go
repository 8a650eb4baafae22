package servers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// modulesPlugin is the folder of linkModules that holds every module. RabbitMQ
// searches the folders of its plugins from the last name to the first.
const modulesPlugin = "zz_modules-1.0"

// linkModules fills dir, which it makes, with links to the plugins of the
// RabbitMQ that is installed, and with one more that links all modules of them
// and of Erlang: as RABBITMQ_PLUGINS_DIR it lets a node find each module at the
// first look. A node loads 850 modules when it starts, and looks for each in a
// hundred folders otherwise, by one switch of threads for each of 52,000 files
// that are not there: 10 s instead of 3, and three times the processor time.
// It reports whether it could; packages other than Debian's have archives
// instead of folders, which it leaves alone.
func linkModules(dir string) (linked bool, err error) {
	plugins, err := rabbitPlugins()
	if err != nil || len(plugins) == 0 {
		return false, err
	}
	all := filepath.Join(dir, modulesPlugin, "ebin")
	if err := os.MkdirAll(all, 0o755); err != nil {
		return false, err
	}
	const app = `{application, zz_modules, [{description, "Modules of all plugins"}, {vsn, "1.0"}, {modules, []}, {registered, []}, {applications, [kernel, stdlib]}]}.`
	if err := os.WriteFile(filepath.Join(all, "zz_modules.app"), []byte(app+"\n"), 0o644); err != nil {
		return false, err
	}
	for _, plugin := range plugins {
		if err := os.Symlink(plugin, filepath.Join(dir, filepath.Base(plugin))); err != nil {
			return false, err
		}
	}
	libraries, err := erlangLibraries()
	if err != nil {
		return false, err
	}
	for _, folder := range append(plugins, libraries...) {
		modules, err := filepath.Glob(filepath.Join(folder, "ebin", "*.beam"))
		if err != nil {
			return false, err
		}
		for _, module := range modules {
			// Where two have the same name, the plugin's is the one.
			if err := os.Symlink(module, filepath.Join(all, filepath.Base(module))); err != nil && !errors.Is(err, fs.ErrExist) {
				return false, err
			}
		}
	}
	return true, nil
}

// rabbitPlugins are the folders of the server and of what it needs, none if
// they are not where linkModules understands them. Nothing here enables a
// plugin, so those that are plugins to users are left out.
func rabbitPlugins() ([]string, error) {
	script, err := filepath.EvalSymlinks(filepath.Join(rabbitDir, "rabbitmq-server"))
	if err != nil {
		return nil, fmt.Errorf("the folder of RabbitMQ: %w", err)
	}
	found, err := filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(script)), "plugins", "*-*", "ebin"))
	if err != nil {
		return nil, err
	}
	var folders []string
	complete := false
	for _, ebin := range found {
		folder := filepath.Dir(ebin)
		name, _, _ := strings.Cut(filepath.Base(folder), "-")
		complete = complete || name == "rabbit"
		if strings.HasPrefix(name, "rabbitmq_") && name != "rabbitmq_prelaunch" {
			continue
		}
		folders = append(folders, folder)
	}
	if !complete {
		return nil, nil
	}
	return folders, nil
}

// erlangLibraries are the folders of the applications that come with Erlang.
func erlangLibraries() ([]string, error) {
	program, err := exec.LookPath("erl")
	if err != nil {
		return nil, fmt.Errorf("erlang: %w", err)
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return nil, fmt.Errorf("erlang: %w", err)
	}
	return filepath.Glob(filepath.Join(filepath.Dir(filepath.Dir(program)), "lib", "*-*"))
}
