/* Ember is a global in this version; `import Ember from 'ember'` needs a module of that name. */
(function () {
  define('ember', [], function () {
    'use strict';
    return { 'default': window.Ember };
  });
})();
